"""What the user's turn says: 20 templates a task type (METHOD 3 and 4), and their rendering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from jala_ray.types import TASK_TYPES, Hand, TaskType, UserError

TEMPLATES_PER_TASK: Final = 20

TEMPLATES: Final[dict[TaskType, tuple[str, ...]]] = {
    "generation": (
        "{instruction}.",
        "Task: {instruction}. Predict how {hands} will move over the next {seconds}.",
        "You are looking at the first frame. Generate {seconds} of motion for {hands}: {instruction}.",
        'Produce hand motion that follows the instruction "{instruction}", starting from this view.',
        "Given this scene, what should {hands} do to complete the task: {instruction}? Answer with motion.",
        "The goal is: {instruction}. Plan {seconds} of movement with {hands}.",
        "Starting from the pictured moment, animate {hands} through this action: {instruction}.",
        "Someone asks you: {instruction}. Show the movement of {hands} that fulfils the request.",
        'Turn the words "{instruction}" into {seconds} of hand motion in this scene.',
        "Write out the trajectory of {hands} for the following command. {instruction}.",
        "Here is the view before the action begins. Act it out: {instruction}.",
        "Imagine these are your own eyes and hands. {instruction}, and report the motion.",
        "Synthesise a natural movement of {hands} lasting {seconds} for this job: {instruction}.",
        "From this image alone, foresee the motion of {hands} when the person is told: {instruction}.",
        "Instruction: {instruction}. Duration: {seconds}. Give the motion of {hands}.",
        'How would a person move {hands} here to do this: "{instruction}"?',
        "Carry out the step below with {hands}, beginning at the frame shown. {instruction}.",
        "The next {seconds} should show this happening: {instruction}. Fill in the hand motion.",
        "Act on the command using what you see. Command: {instruction}. Using: {hands}.",
        'Demonstrate "{instruction}" with {hands}, as fluently as a human would.',
    ),
    "continuation": (
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
    "description": (
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
    "pure_video": (
        "{instruction}. Show the hand motion.",
        "In everyday footage a person is about to do this: {instruction}. Anticipate the motion.",
        "The image opens a video. Caption: {instruction}. Predict the {seconds} of hand motion after it.",
        'The recording is described as "{instruction}". How do the hands move in it?',
        "What movement of {hands} do you expect in a video of someone doing this: {instruction}?",
        "Recover the motion hidden behind this view and these words: {instruction}.",
        "Going by the opening frame, act out the scene: {instruction}.",
        "A video starts here and runs for {seconds}. Its content: {instruction}. Give the motion of {hands}.",
        'Infer the hand movement in a clip titled "{instruction}".',
        "The camera wearer sets out to do this: {instruction}. Anticipate the next {seconds}.",
        "Using the image as the starting point, follow through with the activity: {instruction}.",
        "Think of how people usually do this, then move {hands} accordingly: {instruction}.",
        "What happens next, in terms of hand motion, if the person does this: {instruction}?",
        "Only the first frame is visible. The activity is: {instruction}. Work out the motion.",
        'Picture the next {seconds} of "{instruction}" and give the motion of {hands}.',
        "A passer-by films this: {instruction}. Reconstruct how {hands} must have moved.",
        "From a casual recording: {instruction}. Provide plausible motion for {hands}.",
        "Let the scene and the sentence guide the movement. Sentence: {instruction}.",
        "Before you is a moment of daily life. Add the motion that makes this take place: {instruction}.",
        "The label of this clip reads: {instruction}. Produce matching motion.",
    ),
}
"""20 templates a task type. Every one but those of description holds `{instruction}` exactly once."""

PLACEHOLDERS: Final = frozenset({"instruction", "seconds", "hands"})


def all_templates() -> list[str]:
    """Of every task type, in order: what a text tokenizer of a run without a pretrained one learns from."""
    return [template for templates in TEMPLATES.values() for template in templates]


def render(task_type: TaskType, template_index: int, *, instruction: str, seconds: float, hands: Sequence[Hand]) -> str:
    """The user's text for one sample.

    `instruction`: what to do; its final punctuation and outer blanks are dropped, as templates bring their
    own. Unused by description. `seconds`: duration in model time. `hands`: those of the clip not absent.

    Raises UserError for an unknown task or template, a blank instruction where one is needed, or no hands.
    """
    if task_type not in TEMPLATES:
        raise UserError("task_type", task_type, f"one of {', '.join(TASK_TYPES)}")
    templates = TEMPLATES[task_type]
    if not 0 <= template_index < len(templates):
        raise UserError("template_index", template_index, f"0 <= index < {len(templates)}")
    text = instruction.strip().rstrip(" .!?")
    if task_type != "description" and not text:
        raise UserError("instruction", instruction, f"text for the task {task_type}")
    present = frozenset(hands)
    if not present:
        raise UserError("hands", tuple(hands), "at least one hand", "A clip without hands has no motion.")
    which = "both hands" if len(present) == 2 else f"the {Hand(next(iter(present))).name.lower()} hand"
    amount = f"{seconds:g} second" + ("" if seconds == 1 else "s")
    return templates[template_index].format(instruction=text, seconds=amount, hands=which)
