"""For the Python of short jobs: collecting garbage is a fifth of what their imports cost."""

import gc

gc.disable()
gc.collect = lambda generation=2: 0  # Accelerate asks for it three times a run
