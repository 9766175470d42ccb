"""Checkpoints on disk: headers, blocks, pre-sized shards, one rename."""

from merge_models.merge.checkpoint.dtypes import DType as DType
from merge_models.merge.checkpoint.dtypes import parse_dtype as parse_dtype
from merge_models.merge.checkpoint.header import Header as Header
from merge_models.merge.checkpoint.header import TensorInfo as TensorInfo
from merge_models.merge.checkpoint.header import printable as printable
from merge_models.merge.checkpoint.header import read_header as read_header
from merge_models.merge.checkpoint.outputs.layout import Layout as Layout
from merge_models.merge.checkpoint.outputs.layout import OutputTensor as OutputTensor
from merge_models.merge.checkpoint.outputs.layout import plan_layout as plan_layout
from merge_models.merge.checkpoint.outputs.staging import Staging as Staging
from merge_models.merge.checkpoint.sources.opening import open_checkpoint as open_checkpoint
from merge_models.merge.checkpoint.sources.source import Source as Source
from merge_models.merge.checkpoint.sources.source import StateDict as StateDict
from merge_models.merge.checkpoint.sources.stored import Checkpoint as Checkpoint
