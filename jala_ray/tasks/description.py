"""A text of what a hand motion does (method.md 3)."""

from jala_ray.tasks.base import TASKS, TaskKind

TASKS.register("description", place=3)(
    TaskKind(
        templates=(
            "Describe the motion of {hands} in this clip.",
            "Here are the first frame and {seconds} of hand motion. What is happening?",
            "What action does this movement of {hands} carry out?",
            "Put the shown hand motion into words.",
            "Summarise the activity that the image and the motion depict.",
            "Watch the movement of {hands} and say what the person is doing.",
            "Which task is being performed here? Answer in a sentence.",
            "Look at the scene and the motion that follows. Tell me what the person accomplishes.",
            "Translate these {seconds} of motion into a short caption.",
            "Explain the purpose of the movement that starts from this view.",
            "If you had to tell somebody how to repeat this motion, what would you say?",
            "Write a caption for the motion of {hands}.",
            "Name the object involved and say what is done to it with {hands}.",
            "The motion below begins at the pictured moment. Give an account of it.",
            "Interpret the trajectory of {hands}: what is its goal?",
            "Report in plain language what takes place during these {seconds}.",
            "What instruction could have led to this hand motion?",
            "From the image and the motion, recognise the manipulation being carried out.",
            "Someone who cannot see the clip asks what goes on in it. Reply from the motion given.",
            "State briefly how {hands} moved and to what end.",
        ),
        given="all",
        answers=True,
    )
)
