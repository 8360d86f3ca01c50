"""Kinds of backbones: `KIND.py` declares one (`config.backbones.BackboneKind`), `_KIND.py` beside it holds its modules (`base.Backbone`).

Files that are added are a kind that is added; importing this package loads no torch.
"""
