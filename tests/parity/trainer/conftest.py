"""What the tests of the trainer share."""

import torch.utils.data._utils as loading

# A data worker that was forked from a process with JAX's threads hangs at its end; the loader waits so many seconds for each.
loading.MP_STATUS_CHECK_INTERVAL = 0.5
