"""Policies that robots ask over a network: what a policy is, the wires it is asked by, and what keys on a wire mean.

Nothing here imports torch or Ray: a policy may be a checkpoint's, or a function of yours.
"""
