"""The rest of a hand motion whose beginning is given (method.md 3)."""

from jala_ray.tasks.base import TASKS, TaskKind

TASKS.register("continuation", place=2)(
    TaskKind(
        templates=(
            "{instruction}. The motion so far is given; continue it.",
            "Task: {instruction}. The beginning of the movement is shown. Predict the rest.",
            "The movement of {hands} is under way, for this task: {instruction}. Complete it.",
            'While doing "{instruction}", the movement below has taken place. What comes next?',
            "Extend the given motion until this is done: {instruction}.",
            "You see the first frame and the first part of the motion. Finish the action: {instruction}.",
            "The clip lasts {seconds} and its opening motion is known. Goal: {instruction}. Predict the rest.",
            'Keep going: from the motion observed so far, carry "{instruction}" through to its end.',
            "The action has begun but is not finished. Supply the missing motion of {hands} for: {instruction}.",
            "Judging by the movement up to now, forecast how {hands} will proceed with this task: {instruction}.",
            "Pick up where the motion stops and complete the instruction: {instruction}.",
            "Some of the motion of {hands} is given. Goal: {instruction}. Generate the part that follows.",
            "Out of {seconds} of motion, only the start is given. Complete it so that it fulfils: {instruction}.",
            "A person was told: {instruction}. You have seen the movement start; produce its continuation.",
            "History: the motion tokens below. Goal: {instruction}. Next: the motion that leads there.",
            "Let the remaining movement of {hands} follow smoothly from the given one. Task: {instruction}.",
            'Here are an image, the intention "{instruction}" and the motion until now. Predict what follows.',
            "Without a break in the movement, go on with this: {instruction}.",
            "Complete the trajectory of {hands}. What the person intends: {instruction}.",
            'Given how it started, how does the motion for "{instruction}" end?',
        ),
        given="beginning",
        least_chunks=2,
    )
)
