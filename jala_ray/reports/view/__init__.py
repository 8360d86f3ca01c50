"""Recordings for Rerun's viewer (https://rerun.io): episodes, clips with hands, predictions beside truth, rollouts. The extra `view`."""
