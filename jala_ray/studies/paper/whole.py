"""The whole study, or what of it is missing."""

from __future__ import annotations

from jala_ray import storage
from jala_ray.studies.paper.asked import PaperStudy
from jala_ray.studies.paper.plan import plan_study
from jala_ray.types import JalaError


def run(asked: PaperStudy) -> int:
    """Raises `ConfigError` for other settings in the same folder, `ManifestError` for a manifest that can't give the table, and what a
    run raises, after the table of those that are done was written."""
    study = plan_study(asked)
    if asked.dry_run:
        from jala_ray.studies.paper.cost import listing

        print(listing(study))
        return 0
    from jala_ray.studies.paper.page import publish
    from jala_ray.studies.paper.parts import check_tokenizer, make_caches, make_tokenizer
    from jala_ray.studies.paper.runs import work

    with storage.in_environment(study.options):  # of the base's settings, which libraries are to know too
        study.begin()
        tokenizer = make_tokenizer(study)
        check_tokenizer(study, tokenizer)
        try:
            work(study, tokenizer, make_caches(study, tokenizer))
        except JalaError:
            if (page := publish(study)) is not None:
                print(f"the runs that are done: {page}", flush=True)
            raise
        print(publish(study))
    return 0
