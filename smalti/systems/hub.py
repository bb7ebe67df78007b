"""Files of published checkpoints: from the hub's cache, from the hub, or an error that says how to do it by hand."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from smalti.errors import UnavailableError
from smalti.systems.record import Checkpoint


def fetch(checkpoint: Checkpoint, system: str) -> Path:
    """The file's path in the hub's cache, downloaded if it is not there.

    Args:
        checkpoint: what to fetch.
        system: the record's name, for the error's advice.

    Raises:
        UnavailableError: if it is not on the hub, or the hub can't be reached or does not give it.
    """
    by_hand = f"download {checkpoint.place} by hand and give load({system!r}, checkpoint=FILE)"
    if checkpoint.hub is None:
        raise UnavailableError(f"{system}'s {checkpoint.name} is not on the hub: {by_hand}")
    if checkpoint.file is None:
        raise UnavailableError(f"which file of {checkpoint.hub} is meant is not recorded: {by_hand}")
    cached = try_to_load_from_cache(checkpoint.hub, checkpoint.file)
    if isinstance(cached, str):
        return Path(cached)
    if not _can_reach(constants.ENDPOINT):
        raise UnavailableError(f"there is no network to fetch {checkpoint.hub} with: {by_hand}")
    try:
        return Path(hf_hub_download(checkpoint.hub, checkpoint.file))
    except (OSError, ValueError, HfHubHTTPError) as error:  # offline mode, gated or renamed repository, full disk
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnavailableError(f"{checkpoint.hub} could not be fetched ({reason}): {by_hand}") from error


def _can_reach(endpoint: str) -> bool:
    """Whether the host has an address; without one the hub's client retries for half a minute before it says so."""
    if getproxies():  # then the proxy resolves names
        return True
    try:
        socket.getaddrinfo(urlsplit(endpoint).hostname, None)
    except OSError:
        return False
    return True
