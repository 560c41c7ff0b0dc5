"""`xvlm2vec_st.utils.folders`: the same code moves every result of this distribution into its place."""

from mmmeb_tasks.utils.shared import shared

_folders = shared("folders")

Destination = _folders.Destination
expanded = _folders.expanded
is_complete = _folders.is_complete
read_object = _folders.read_object
remove = _folders.remove
whole_file = _folders.whole_file
