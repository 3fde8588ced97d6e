import sys

from vtw_demo.embedded.training.command import main
from vtw_demo.errors import UserError

try:
    main()
except UserError as error:
    sys.exit(str(error))
