"""A learnt linear map into the teacher's space, for a student of another width or pooling."""

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import nn

from xvlm2vec_st.distillation.states import width_of


def add_projection(student: SentenceTransformer, width: int) -> None:
    """Put a Dense layer of `width` outputs after the student's pooling, in place.

    It is a module of the student, so it is trained, saved and loaded as any other, and the student's
    embeddings lie in the teacher's space. It starts as an orthogonal map, which keeps distances.

    Example::

        add_projection(student, teacher.get_embedding_dimension())
    """
    dense = Dense(width_of(student), width, bias=False, activation_function=nn.Identity())
    with torch.no_grad():
        nn.init.orthogonal_(dense.linear.weight)
    dense.to(student.device)
    last = len(student) - 1
    student.insert(last if isinstance(student[last], Normalize) else last + 1, dense)
