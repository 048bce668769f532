"""`twistd drimbox --config FILE`."""

from twisted.application.service import ServiceMaker

drimbox = ServiceMaker("DRIMbox", "drimbox.tap", "Passerelle d'imagerie DRIMbox.", "drimbox")
