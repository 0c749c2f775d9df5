"""What a training logs, in words: for its page and for the table at its end."""

# a name, or what several names begin with: words, unit
MEANINGS = {
    "gan_": ("how well discriminators tell translations from real images (Eq. 4)", "loss"),
    "d_": ("the discriminators' own error (Eq. 4)", "loss"),
    "cycle_": ("what is lost by translating there and back, weighted (Eq. 7)", "loss"),
    "feature_": ("what the translation moves or hides, weighted (Eq. 10)", "loss"),
    "kid": ("held-out days, translated: distance to real nights (KID)", "squared distance"),
    "kid_error": ("standard error of that distance", "squared distance"),
    "cycle": ("held-out days: what is lost there and back (Eq. 7)", "of 2, the range of an image"),
    "feature": ("held-out days: what the translation moves or hides (Eq. 10)", "of the mean square"),
    "kept": ("held-out days: pixels that the judge labels as before", "%"),
    "kept/": ("the same of each class", "%"),
    "held_out_": ("images held out to validate", "images"),
    "ce_": ("error against the labels (Eq. 12)", "cross entropy"),
    "ce_pasted": ("error against the labels of what is pasted onto nights", "cross entropy"),
    "ssl_": ("student apart from teacher, weighted (Eq. 15)", "loss"),
    "mask_": ("pixels that the student learns from (Eq. 14)", "share, 0 to 1"),
    "entropy": ("how unsure the teacher is of nights", "0 sure, 1 guessing"),
    "day_miou": ("held-out labelled days: mean IoU", "%"),
    "day_accuracy": ("held-out labelled days: pixels labelled right", "%"),
    "day/": ("held-out labelled days: IoU of each class", "%"),
    "validate_on_miou": ("--validate-on: mean IoU", "%"),
    "validate_on_accuracy": ("--validate-on: pixels labelled right", "%"),
    "validate_on/": ("--validate-on: IoU of each class", "%"),
    "night_agreement": ("held-out nights: student and teacher agree, mean IoU", "%"),
    "night_mask": ("held-out nights: pixels of which the teacher is sure", "%"),
    "accepted/": ("night pixels predicted as a class that the student learns from", "share, 0 to 1"),
}


def meaning(name: str) -> tuple[str, str]:
    """The words and the unit of what is logged as `name`; of an unknown one what it begins with, and no unit."""
    begins = [key for key in MEANINGS if name == key or key[-1] in "_/" and name.startswith(key)]
    return MEANINGS[max(begins, key=len)] if begins else (name.partition("/")[0], "")
