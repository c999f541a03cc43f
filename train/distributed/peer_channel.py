"""What the processes of a run tell each other beside the arrays.

Process 0 holds a TCP connection to every other. The kernel ends it with the
process at the other end, however that dies, so the death of one is known at
once by its index, even where a collective would hang. An error of one process
goes the same way, and ends them all. A machine that is lost with no goodbye is
found by TCP's keepalive.
"""

import contextlib
import json
import os
import queue
import secrets
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from train import errors
from train.distributed import signals

# Exit status where another process failed or died.
LOST = 3

_AGAIN = (
  'Start all processes again with the same command: it goes on from the last '
  'checkpoint.'
)
# A machine that does not answer counts as dead after 30 seconds.
_KEEPALIVE = {
  'TCP_KEEPIDLE': 10,  # seconds
  'TCP_KEEPINTVL': 5,
  'TCP_KEEPCNT': 4,
  'TCP_USER_TIMEOUT': 30_000,  # milliseconds
}
_JOIN_SECONDS = 120.0
# An error may be what another's death or error caused here: wait for word.
_PATIENCE = {2: 3.0, 1: 5.0}  # seconds, by exit status


class Line:
  """The connections of one process.

  Attributes:
    index: Which process this is.
    count: How many there are.
    stop: The signals of this process; process 0 hears of those of others.
    shared: What process 0 has shared and this one has not yet taken.
  """

  def __init__(self, index: int, count: int, exchange: Callable[[str], str]):
    """Connects process 0 with all others.

    Args:
      index: Which process this is.
      count: How many there are.
      exchange: Returns in every process the text that process 0 passes it.

    Raises:
      UserError: If they cannot reach each other.
    """
    self.index = index
    self.count = count
    self.stop: signals.Stop | None = None
    self.shared: queue.SimpleQueue[Any] = queue.SimpleQueue()
    self._peers: dict[int, socket.socket] = {}
    self._parts: dict[int, bytes] = {}
    self._hosts = {index: socket.gethostname()}
    self._gone: set[int] = set()  # those that said goodbye
    self._ending = threading.Lock()
    self._writing = threading.Lock()
    self._told_signal = False
    if index == 0:
      self._accept(exchange)
    else:
      self._reach(exchange)
    self._selector = selectors.DefaultSelector()
    for other, peer in self._peers.items():
      self._selector.register(peer, selectors.EVENT_READ, other)
    threading.Thread(target=self._listen, daemon=True).start()

  def _accept(self, exchange: Callable[[str], str]) -> None:
    """In process 0: waits for a connection of every other."""
    token = secrets.token_hex(16)
    deadline = time.monotonic() + _JOIN_SECONDS
    both = socket.has_dualstack_ipv6()
    with socket.create_server(
      ('', 0),
      family=socket.AF_INET6 if both else socket.AF_INET,
      backlog=self.count,
      dualstack_ipv6=both,
    ) as server:
      port = server.getsockname()[1]
      exchange(json.dumps([token, port, self._hosts[0], _addresses()]))
      while len(self._peers) < self.count - 1:
        server.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
          peer, _ = server.accept()
        except TimeoutError:
          missing = set(range(1, self.count)) - set(self._peers)
          raise errors.UserError(
            f'processes {sorted(missing)} did not connect to port {port} of '
            f'{self._hosts[0]}: let the hosts reach each other'
          ) from None
        peer.settimeout(10)
        with contextlib.suppress(OSError, ValueError):
          given, index, host = _line_of(peer).split()
          if secrets.compare_digest(given, token):
            self._hosts[int(index)] = host
            self._peers[int(index)] = _kept_alive(peer)

  def _reach(self, exchange: Callable[[str], str]) -> None:
    """In the others: connects to process 0."""
    token, port, host, addresses = json.loads(exchange(''))
    self._hosts[0] = host
    own = self._hosts[self.index]
    failures = []
    for address in addresses:
      try:
        peer = socket.create_connection((address, port), timeout=20)
      except OSError as error:
        failures.append(f'{address}:{port} ({error})')
        continue
      peer.sendall(f'{token} {self.index} {own}\n'.encode())
      self._peers[0] = _kept_alive(peer)
      return
    raise errors.UserError(
      f'process {self.index} on {own} cannot reach process 0 on {host} at '
      f'{" or ".join(failures)}: let the hosts reach each other'
    )

  def tell_all(self, message: dict[str, Any], but: int | None = None) -> None:
    """Sends to the processes at the other ends."""
    data = json.dumps(message).encode() + b'\n'
    with self._writing:
      for index, peer in self._peers.items():
        if index != but:
          # One that is gone is found by the thread that listens.
          with contextlib.suppress(OSError):
            peer.sendall(data)

  def fail(
    self, status: int, text: str, error: Exception | None = None
  ) -> NoReturn:
    """Ends all processes because of this one."""
    # Another may have failed first, and this only be what came of it. Process
    # 0 speaks at once of what all of them find.
    if status == 1 or self.index:
      time.sleep(_PATIENCE.get(status, 1.0))
    if error is not None:
      traceback.print_exception(error)
    who = self.index
    end = {'end': status, 'who': who, 'host': self._hosts[who], 'text': text}
    if self.index == 0:
      self._end(end)
    self.tell_all(end)
    # Process 0 sends it back.
    time.sleep(30)
    _exit(status)

  def _listen(self) -> None:
    """Reads what the others say, until they or this one end."""
    while True:
      for key, _ in self._selector.select(timeout=0.5):
        try:
          data = key.fileobj.recv(65536)  # type: ignore[union-attr]
        except OSError:
          data = b''
        if data:
          *lines, rest = (self._parts.get(key.data, b'') + data).split(b'\n')
          self._parts[key.data] = rest
          for line in lines:
            self._hear(key.data, json.loads(line))
        else:
          self._selector.unregister(key.fileobj)
          self._lost(key.data)
      stop = self.stop
      if stop is not None and stop.signum and not self._told_signal:
        self._told_signal = True
        if self.index:
          self.tell_all({'signal': stop.signum})

  def _hear(self, index: int, message: dict[str, Any]) -> None:
    if 'share' in message:
      self.shared.put(message['share'])
    elif 'signal' in message:
      if self.stop is not None and self.stop.signum is None:
        self.stop.signum = message['signal']
    elif 'bye' in message:
      self._gone.add(index)
    elif 'end' in message:
      self._end(message)

  def _lost(self, index: int) -> None:
    if index not in self._gone:
      host = self._hosts[index]
      self._end({'end': LOST, 'who': index, 'host': host, 'text': 'died'})

  def _end(self, end: dict[str, Any]) -> NoReturn:
    """Ends this process, and from process 0 all; the first reason counts."""
    self._ending.acquire()  # Never released.
    status, who, text = end['end'], end['who'], end['text']
    name = f'process {who} of {self.count} (on {end["host"]})'
    if self.index == 0:
      self.tell_all(end, but=None if status != LOST else who)
    if status == 2:
      if self.index == 0 or self.index == who:
        prefix = '' if who == 0 else f'{name}: '
        print(f'error: {prefix}{text}', file=sys.stderr)
    elif status > 128:
      if self.index == 0:
        print(text)
    else:
      print(f'error: {name} {text}. {_AGAIN}', file=sys.stderr)
      status = status if self.index == who else LOST
    if self.index == 0:
      self._wait(but=who if status == LOST else None)
    _exit(status)

  def _wait(self, but: int | None, seconds: float = 5.0) -> None:
    """In process 0: waits for the others to end, since they need it to."""
    end = time.monotonic() + seconds
    for index, peer in self._peers.items():
      with contextlib.suppress(OSError):
        peer.settimeout(max(end - time.monotonic(), 0.01))
        while index != but and peer.recv(65536):
          pass


def _exit(status: int) -> NoReturn:
  """Ends the process at once: an orderly end would wait for the others."""
  for file in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      file.flush()
  os._exit(status)


def _line_of(peer: socket.socket) -> str:
  """Reads up to the first end of a line, and not a byte more."""
  data = b''
  while len(data) < 500 and (byte := peer.recv(1)) not in (b'', b'\n'):
    data += byte
  return data.decode()


def _addresses() -> list[str]:
  """Where this machine may be reached, the likeliest first."""
  found = []
  with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as s:
    s.connect(('192.0.2.1', 9))  # Sends nothing: asks for the route.
    found.append(s.getsockname()[0])
  with contextlib.suppress(OSError):
    infos = socket.getaddrinfo(
      socket.gethostname(), None, type=socket.SOCK_STREAM
    )
    found.extend(str(info[4][0]) for info in infos)
  return [*dict.fromkeys([*found[:8], '127.0.0.1'])]


def _kept_alive(peer: socket.socket) -> socket.socket:
  peer.settimeout(None)
  peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
  for name, value in _KEEPALIVE.items():
    if hasattr(socket, name):
      peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
  return peer
