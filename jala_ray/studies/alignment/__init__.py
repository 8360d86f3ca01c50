"""Does alignment on unlabelled video do what the paper says? `jala study alignment --out runs/study` asks, for anyone.

Lab is labelled, Wild looks otherwise and is mostly not. Stages, each skipped where it is done, each refused under other settings:

1. `world`: videos of both domains, and two manifests over them: the study's, and its twin in which all of Wild is labelled.
2. `tokenizer`: the small motion tokenizer, from the labels that the study's manifest has.
3. `encoder`: no pretrained one can be had offline, so a small DINOv3 learns from the world's frames by masked image modelling, once.
4. `caches`: codes, features and first pictures of both manifests.
5. `gates`: what the world must show before any run of JALA counts; then everything is frozen by a hash (`frozen.json`).
6. `runs`: variants x seeds, paired by seed, each in a process of its own; evaluated at E = 1 and E = 4 as it ends.
7. `results.json`, `results.md`, `results.html`: over all runs that are there.
"""
