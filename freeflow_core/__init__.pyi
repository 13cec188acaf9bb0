from freeflow_core.api import RunResult as RunResult
from freeflow_core.api import check_teacher as check_teacher
from freeflow_core.api import compare as compare
from freeflow_core.api import distill as distill
from freeflow_core.api import encode as encode
from freeflow_core.api import evaluate as evaluate
from freeflow_core.api import export as export
from freeflow_core.api import fetch as fetch
from freeflow_core.api import list_weights as list_weights
from freeflow_core.api import load_student as load_student
from freeflow_core.api import load_teacher as load_teacher
from freeflow_core.api import plan as plan
from freeflow_core.api import pretrain as pretrain
from freeflow_core.api import resolve_config as resolve_config
from freeflow_core.api import sample as sample
from freeflow_core.api import search as search

__version__: str
