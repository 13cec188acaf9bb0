"""``freeflow export`` and ``push``: a trained student in the formats of other programs, and on the Hugging Face hub."""

from freeflow_core.tools.export.formats import export_student as export_student
from freeflow_core.tools.export.hub import push as push
from freeflow_core.tools.export.hub import save_pretrained as save_pretrained
