"""Claims of publications about editing, held against measurements of one's own; `sweeps.study` makes these."""

from lke_lightning.studies.butterfly import Butterfly
from lke_lightning.studies.mirage import Mirage
from lke_lightning.studies.study import Claim, Study

__all__ = ["Butterfly", "Claim", "Mirage", "Study"]
