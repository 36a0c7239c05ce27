"""Options, from flags, environment and file, to a frozen ``Settings``; settings to a ``Policy``.

Settings flow one way: nothing below this part knows an option's name.  Flags win over the
environment, which wins over the file.  Within, imports go one way, too: ``values`` know nothing,
``listeners`` and ``process`` build on them, then ``settings``; ``options``, ``parser``, ``load``;
``build`` needs ``settings`` only.
"""

from geosocks.config.build import OPEN_RULES, build_policy
from geosocks.config.listeners import ListenOption, listen_option
from geosocks.config.load import Loaded, load_settings, shown
from geosocks.config.process import control_by_default
from geosocks.config.settings import NEEDS_RESTART, Settings, of_the_process
from geosocks.config.values import ProxyURL, dns_address, listen_address, port_range, seconds

__all__ = [
    "NEEDS_RESTART",
    "OPEN_RULES",
    "ListenOption",
    "Loaded",
    "ProxyURL",
    "Settings",
    "build_policy",
    "control_by_default",
    "dns_address",
    "listen_address",
    "listen_option",
    "load_settings",
    "of_the_process",
    "port_range",
    "seconds",
    "shown",
]
