"""mteb's description of a model, for models of ours."""

from mteb.models import ModelMeta


class OwnMeta(ModelMeta):
    """A description of a model that reads images without torchvision.

    mteb demands its extra "image" (torchvision) of every model that takes images, before loading.
    """

    def _resolve_extras_groups(self) -> list[str]:
        return [*(self.extra_requirements_groups or ())]
