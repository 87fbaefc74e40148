"""The storage of moments between steps: in floating-point dtypes, or in codes of 8 or 4 bits."""

from jaxopt_adam.storage._blockwise import Blocks as Blocks
from jaxopt_adam.storage._blockwise import Blockwise as Blockwise
from jaxopt_adam.storage._choice import NAMED as NAMED
from jaxopt_adam.storage._choice import Storage as Storage
from jaxopt_adam.storage._choice import StorageChoice as StorageChoice
from jaxopt_adam.storage._choice import StorageName as StorageName
from jaxopt_adam.storage._dense import Dense as Dense
