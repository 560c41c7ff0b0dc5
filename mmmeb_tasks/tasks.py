"""The seven tasks of MMMEB over the published data."""

from typing import TypedDict, Unpack

from mteb.abstasks.task_metadata import (
    AnnotatorType,
    SampleCreationMethod,
    TaskCategory,
    TaskDomain,
    TaskSubtype,
)
from mteb.types import Licenses

from mmmeb_tasks.data.download import mmmeb_data
from mmmeb_tasks.data.layout import HUB_DATASET, published
from mmmeb_tasks.metadata import MMMEBMetadata, langscripts
from mmmeb_tasks.retrieval import MMMEBRetrieval

MMMEB_CITATION = r"""
@misc{musacchio2025xvlm2vec,
  archiveprefix = {arXiv},
  author = {Musacchio, Elio and Siciliani, Lucia and Basile, Pierpaolo and Semeraro, Giovanni},
  eprint = {2503.09313},
  primaryclass = {cs.CL},
  title = {xVLM2Vec: Adapting LVLM-based embedding models to multilinguality using Self-Knowledge Distillation},
  year = {2025},
}
"""  # noqa: E501 - the title

XM3600_CITATION = r"""
@inproceedings{thapliyal2022crossmodal,
  author = {Thapliyal, Ashish V. and Pont-Tuset, Jordi and Chen, Xi and Soricut, Radu},
  booktitle = {Proceedings of the 2022 Conference on Empirical Methods in Natural Language Processing},
  pages = {715--729},
  title = {Crossmodal-3600: A Massively Multilingual Multimodal Evaluation Dataset},
  year = {2022},
}
"""

XTD10_CITATION = r"""
@misc{aggarwal2020zeroshot,
  archiveprefix = {arXiv},
  author = {Aggarwal, Pranav and Kale, Ajinkya},
  eprint = {2012.05107},
  title = {Towards Zero-shot Cross-lingual Image Retrieval},
  year = {2020},
}
"""

BABEL_CITATION = r"""
@misc{geigle2023babelimagenet,
  archiveprefix = {arXiv},
  author = {Geigle, Gregor and Timofte, Radu and Glava{\v{s}}, Goran},
  eprint = {2306.08658},
  title = {Babel-ImageNet: Massively Multilingual Evaluation of Vision-and-Language Representations},
  year = {2023},
}
"""

MAXM_CITATION = r"""
@misc{changpinyo2022maxm,
  archiveprefix = {arXiv},
  author = {Changpinyo, Soravit and others},
  eprint = {2209.05401},
  title = {MaXM: Towards Multilingual Visual Question Answering},
  year = {2022},
}
"""

FLICKR_CITATION = r"""
@misc{plummer2015flickr30k,
  archiveprefix = {arXiv},
  author = {Plummer, Bryan A. and Wang, Liwei and Cervantes, Chris M. and Caicedo, Juan C. and Hockenmaier, Julia and Lazebnik, Svetlana},
  eprint = {1505.04870},
  title = {Flickr30k Entities: Collecting Region-to-Phrase Correspondences for Richer Image-to-Sentence Models},
  year = {2015},
}
"""  # noqa: E501 - the authors


class Facts(TypedDict):
    """What a task's source says, by the names of mteb's metadata; two tasks may have one source."""

    reference: str
    date: tuple[str, str]
    domains: list[TaskDomain]
    task_subtypes: list[TaskSubtype]
    license: Licenses
    annotations_creators: AnnotatorType
    sample_creation: SampleCreationMethod
    bibtex_citation: str


def _metadata(name: str, category: TaskCategory, description: str, **facts: Unpack[Facts]) -> MMMEBMetadata:
    """What the seven tasks have in common, and what they have not."""
    row = published(name)
    return MMMEBMetadata(
        name=name,
        kind=row.kind,
        description=description,
        dataset={"path": HUB_DATASET, "revision": "main"},
        type="VisionCentricQA" if row.kind == "vqa" else "Any2AnyReranking",
        category=category,
        modalities=["image", "text"],
        eval_splits=["test"],
        eval_langs=langscripts(*row.languages),
        main_score="accuracy",
        dialect=[],
        **facts,
    )


class PublishedTask(MMMEBRetrieval):
    """A task over the published files; a subclass is its metadata."""

    data_root = staticmethod(mmmeb_data)

    def __init_subclass__(cls) -> None:
        """Take the place of the files from the table."""
        super().__init_subclass__()
        row = published(cls.__name__)
        cls.source, cls.maximum = row.dataset, row.maximum


_XM3600: Facts = {
    "reference": "https://google.github.io/crossmodal-3600/",
    "date": ("2022-01-01", "2022-12-31"),
    "domains": ["Scene", "Written"],
    "task_subtypes": ["Image Text Retrieval"],
    "license": "cc-by-4.0",
    "annotations_creators": "human-annotated",
    "sample_creation": "created",
    "bibtex_citation": XM3600_CITATION + MMMEB_CITATION,
}


class XM3600I2TRanking(PublishedTask):
    """Image -> its caption, over Crossmodal-3600."""

    metadata = _metadata(
        "XM3600I2TRanking", "i2t", "Find the caption of an image of Crossmodal-3600 among 1,000.", **_XM3600
    )


class XM3600T2IRanking(PublishedTask):
    """Caption -> its image, over Crossmodal-3600."""

    metadata = _metadata(
        "XM3600T2IRanking", "t2i", "Find the image of a caption of Crossmodal-3600 among 1,000.", **_XM3600
    )


_XTD10: Facts = {
    "reference": "https://github.com/adobe-research/Cross-lingual-Test-Dataset-XTD10",
    "date": ("2020-01-01", "2020-12-31"),
    "domains": ["Scene", "Written"],
    "task_subtypes": ["Image Text Retrieval"],
    "license": "not specified",
    "annotations_creators": "human-annotated",
    "sample_creation": "human-translated",
    "bibtex_citation": XTD10_CITATION + MMMEB_CITATION,
}


class XTD10I2TRanking(PublishedTask):
    """Image -> its caption, over XTD10 (images of MSCOCO)."""

    metadata = _metadata("XTD10I2TRanking", "i2t", "Find an image's caption in XTD10 among 1,000.", **_XTD10)


class XTD10T2IRanking(PublishedTask):
    """Caption -> its image, over XTD10 (images of MSCOCO)."""

    metadata = _metadata("XTD10T2IRanking", "t2i", "Find a caption's image in XTD10 among 1,000.", **_XTD10)


class ImageNetMultilingual(PublishedTask):
    """Image -> name of its class, over ImageNet-1k with the labels of Babel-ImageNet."""

    metadata = _metadata(
        "ImageNetMultilingual",
        "i2t",
        "Name what an image of ImageNet-1k shows: one of 627 to 632 classes, named by Babel-ImageNet.",
        reference="https://github.com/gregor-ge/Babel-ImageNet",
        date=("2009-01-01", "2023-12-31"),
        domains=["Encyclopaedic", "Scene"],
        task_subtypes=["Object recognition"],
        license="not specified",
        annotations_creators="derived",
        sample_creation="found",
        bibtex_citation=BABEL_CITATION + MMMEB_CITATION,
    )


class MaXMRanking(PublishedTask):
    """Image and question -> answer, over MaXM."""

    metadata = _metadata(
        "MaXMRanking",
        "it2t",
        "Answer a question about an image of Crossmodal-3600: one of at most 100 answers.",
        reference="https://github.com/google-research-datasets/maxm",
        date=("2022-01-01", "2023-12-31"),
        domains=["Scene", "Written"],
        task_subtypes=["Question answering"],
        license="cc-by-4.0",
        annotations_creators="human-annotated",
        sample_creation="created",
        bibtex_citation=MAXM_CITATION + MMMEB_CITATION,
    )


class Flickr30kEntitiesGrounding(PublishedTask):
    """Image and phrase -> the part of the image that shows it, over Flickr30k Entities."""

    metadata = _metadata(
        "Flickr30kEntitiesGrounding",
        "it2i",
        "Find the part of an image that a phrase names, among at most 1,000 parts of images.",
        reference="https://bryanplummer.com/Flickr30kEntities/",
        date=("2014-01-01", "2015-12-31"),
        domains=["Scene", "Web"],
        task_subtypes=["Object recognition"],
        license="not specified",
        annotations_creators="human-annotated",
        sample_creation="found",
        bibtex_citation=FLICKR_CITATION + MMMEB_CITATION,
    )


MMMEB_TASKS: tuple[type[PublishedTask], ...] = (
    XM3600I2TRanking,
    XM3600T2IRanking,
    XTD10I2TRanking,
    XTD10T2IRanking,
    ImageNetMultilingual,
    MaXMRanking,
    Flickr30kEntitiesGrounding,
)
