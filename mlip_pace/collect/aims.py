from collections.abc import Iterator
from mlip_pace.collect.files import Frame
def read(content: bytes) -> Iterator[Frame]:
    yield from ()
