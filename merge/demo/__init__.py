"""Three tiny experts and their base, trained for real, to try a merge on."""

from merge_models.merge.demo.skills import SKILLS as SKILLS
from merge_models.merge.demo.skills import Skill as Skill
from merge_models.merge.demo.skills import complete as complete
from merge_models.merge.demo.skills import demo_folder as demo_folder
from merge_models.merge.demo.skills import held_out as held_out
from merge_models.merge.demo.skills import is_held_out as is_held_out
from merge_models.merge.demo.skills import load as load
from merge_models.merge.demo.skills import score as score
from merge_models.merge.demo.skills import solved as solved
