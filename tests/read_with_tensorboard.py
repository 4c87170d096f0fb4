"""Prints every scalar that TensorBoard's own reader finds in directories of event files, as JSON: tag → [[step, value]]."""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator


def scalars(directory):
    # 0: keep all of them.
    events = EventAccumulator(directory, size_guidance={SCALARS: 0}).Reload()
    return {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()[SCALARS]}


print(json.dumps({directory: scalars(directory) for directory in sys.argv[1:]}))
