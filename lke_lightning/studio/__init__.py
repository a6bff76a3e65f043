"""The command `studio`: a page to try an edited model, on this machine."""

from lke_lightning.studio.command import studio as studio
