"""The whole study, or what of it is missing."""

from __future__ import annotations

from jala_ray.studies.paper.asked import PaperStudy
from jala_ray.studies.paper.plan import plan_study


def run(asked: PaperStudy) -> int:
    """Raises `ConfigError` for other settings in the same folder, `ManifestError` for a manifest that can't give the table."""
    study = plan_study(asked)
    if asked.dry_run:
        from jala_ray.studies.paper.cost import listing

        print(listing(study))
        return 0
    from jala_ray.studies.paper.page import publish
    from jala_ray.studies.paper.parts import check_tokenizer, make_caches, make_tokenizer
    from jala_ray.studies.paper.runs import work

    study.begin()
    tokenizer = make_tokenizer(study)
    check_tokenizer(study, tokenizer)
    work(study, tokenizer, make_caches(study, tokenizer))
    print(publish(study))
    return 0
