"""A procedural world of subjects and styles with known ground truth (see docs/architecture.md)."""

from lorabench.data.microworld.captions import caption as caption
from lorabench.data.microworld.captions import vocabulary as vocabulary
from lorabench.data.microworld.factors import CLASSES as CLASSES
from lorabench.data.microworld.factors import FAMILIES as FAMILIES
from lorabench.data.microworld.factors import SCENES as SCENES
from lorabench.data.microworld.factors import SEEN_FAMILIES as SEEN_FAMILIES
from lorabench.data.microworld.factors import UNSEEN_FAMILIES as UNSEEN_FAMILIES
from lorabench.data.microworld.factors import Color as Color
from lorabench.data.microworld.factors import Pose as Pose
from lorabench.data.microworld.factors import Style as Style
from lorabench.data.microworld.factors import Subject as Subject
from lorabench.data.microworld.factors import content_distance as content_distance
from lorabench.data.microworld.factors import sample_pose as sample_pose
from lorabench.data.microworld.factors import style_distance as style_distance
from lorabench.data.microworld.registry import DEVELOPMENT_STYLES as DEVELOPMENT_STYLES
from lorabench.data.microworld.registry import DEVELOPMENT_SUBJECTS as DEVELOPMENT_SUBJECTS
from lorabench.data.microworld.registry import HELDOUT_STYLES as HELDOUT_STYLES
from lorabench.data.microworld.registry import HELDOUT_SUBJECTS as HELDOUT_SUBJECTS
from lorabench.data.microworld.registry import VERSION as VERSION
from lorabench.data.microworld.registry import kind_of as kind_of
from lorabench.data.microworld.registry import sample_style as sample_style
from lorabench.data.microworld.registry import sample_subject as sample_subject
from lorabench.data.microworld.registry import style as style
from lorabench.data.microworld.registry import subject as subject
from lorabench.data.microworld.render import render as render
