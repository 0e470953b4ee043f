"""A program that uses kazoo, for tests/interop.rs to drive: takes a command a line from stdin, answers a line on stdout.

    lock PATH [IDENTIFIER]      contends for a lock; says `held`
    elect PATH [IDENTIFIER]     stands for election; says `held`
    try PATH                    says `held` or `taken`
    release                     gives back what is held; says `released`
    cancel                      stops waiting; says `cancelled`
    contenders PATH             says who contends, as JSON

It contends for one thing at a time, and ends with its stdin.
"""

import json
import sys
import threading

from kazoo.client import KazooClient
from kazoo.exceptions import CancelledError

# In seconds. When the peer is killed its contender stays for so long.
SESSION = 4.0
START = 30.0


def say(answer):
    print(answer, flush=True)


class Peer:
    def __init__(self, client):
        self.client = client
        # A program keeps its lock and uses it again.
        self.locks = {}
        self.contest = None
        self.release_wanted = threading.Event()

    def do_lock(self, path, identifier=""):
        self.contend(self.lock_at(path, identifier), self.hold_lock)

    def do_elect(self, path, identifier=""):
        election = self.client.Election(path, identifier)
        self.contend(election, lambda: election.run(self.hold))

    def do_try(self, path):
        lock = self.lock_at(path, "")
        if not lock.acquire(blocking=False):
            say("taken")
            return
        self.contend(lock, lambda: self.hold_and_release(lock))

    def do_release(self):
        self.release_wanted.set()

    def do_cancel(self):
        self.contest.cancel()

    def do_contenders(self, path):
        say(json.dumps(self.client.Lock(path).contenders()))

    def lock_at(self, path, identifier):
        if path not in self.locks:
            self.locks[path] = self.client.Lock(path, identifier)
        return self.locks[path]

    def contend(self, contest, work):
        self.contest = contest
        self.release_wanted.clear()
        threading.Thread(target=self.report, args=(work,), daemon=True).start()

    def report(self, work):
        try:
            work()
            # kazoo's elections end without a word when they are cancelled.
            say("released" if self.release_wanted.is_set() else "cancelled")
        except CancelledError:
            say("cancelled")
        except Exception as error:
            say("failed: {!r}".format(error))

    def hold_lock(self):
        with self.contest:
            self.hold()

    def hold_and_release(self, lock):
        self.hold()
        lock.release()

    def hold(self):
        say("held")
        self.release_wanted.wait()


def main():
    client = KazooClient(hosts=sys.argv[1], timeout=SESSION)
    client.start(timeout=START)
    peer = Peer(client)
    say("ready")
    for line in sys.stdin:
        command, *arguments = line.split()
        getattr(peer, "do_" + command)(*arguments)
    client.stop()
    client.close()


if __name__ == "__main__":
    main()
