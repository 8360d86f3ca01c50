"""Everything that the commands import, for the server that forks them."""

import boto3  # noqa: F401
import obstore.store  # noqa: F401
import pyarrow.dataset
import pyarrow.fs  # noqa: F401
import torch  # noqa: F401
import transformers.models.auto  # noqa: F401

import jala_ray.data.prepare.job
import jala_ray.evaluation.job
import jala_ray.models.vla
import jala_ray.reports.motion.publish
import jala_ray.tokenizer.quality
import jala_ray.training.build
import jala_ray.training.checkpoint
import jala_ray.training.pretraining
import jala_ray.training.setup  # noqa: F401
