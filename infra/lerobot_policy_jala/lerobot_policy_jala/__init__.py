"""lerobot's policy `jala`: asks a server of jala_ray (`jala serve POLICY --convention lerobot`).

lerobot finds the distribution by its name, and the three parts of the policy by the names of their modules.
"""

from lerobot_policy_jala.configuration_jala import JalaConfig

__all__ = ["JalaConfig"]
