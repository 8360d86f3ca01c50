"""Hand motion for an instruction, from the first picture (method.md 3)."""

from jala_ray.tasks.base import TASKS, TaskKind

TASKS.register("generation", place=1)(
    TaskKind(
        templates=(
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
    )
)
