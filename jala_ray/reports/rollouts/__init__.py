"""The form on which people write down a robot's rollouts, and the page of their scores."""
