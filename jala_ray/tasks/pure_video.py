"""Hand motion for what a video without labels is said to show (method.md 3, 4)."""

from jala_ray.tasks.base import TASKS, TaskKind

TASKS.register("pure_video", place=4)(
    TaskKind(
        templates=(
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
    )
)
