"""The whole study, or what of it is missing."""

from __future__ import annotations

import sys

from jala_ray import storage
from jala_ray.studies.paper.asked import PaperStudy
from jala_ray.studies.paper.plan import PlannedStudy, plan_study
from jala_ray.training.lease import LeaseLost
from jala_ray.types import StoreUnavailable


def run(asked: PaperStudy) -> int:
    """Raises `ConfigError` for other settings in the same folder, `ManifestError` for a manifest that can't give the table, and what a
    run raises, after the table of those that are done was written, unless the store is gone or another process has the run."""
    study = plan_study(asked)
    if asked.dry_run:
        from jala_ray.studies.paper.cost import listing

        print(listing(study))
        return 0
    from jala_ray.studies.paper.page import publish
    from jala_ray.studies.paper.parts import check_tokenizer, make_tokenizer
    from jala_ray.studies.paper.runs import work

    with storage.in_environment(study.options):  # of the base's settings, which libraries are to know too
        study.begin()
        tokenizer = make_tokenizer(study)
        check_tokenizer(study, tokenizer)
        try:
            work(study, tokenizer)
        except (StoreUnavailable, LeaseLost):
            raise
        except Exception:
            publish_done(study)
            raise
        print(publish(study))
    return 0


def publish_done(study: PlannedStudy) -> None:
    """Publish although a run has failed; what fails here is said and not raised, for the first cause is to be."""
    from jala_ray.studies.paper.page import publish

    try:
        if (page := publish(study)) is not None:
            print(f"the runs that are done: {page}", flush=True)
    except Exception as error:
        print(f"the runs that are done have no table: {error}", file=sys.stderr, flush=True)
