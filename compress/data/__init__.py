"""Data sets: one file each, `load(config, *, download, on_bad, cache, progress) → Source`.

A file may say how its images are best learnt and measured, where the recipe says nothing: EPOCHS, TEACHER_EPOCHS,
BATCH_SIZE, LEARNING_RATE and TIER (see `plan.py`); and in LICENSE what the images may be used for, for the card.
"""
