"""The acts with migrations. Each says what the viewer is about to see, does it, and says what was seen."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

from demo.commands import Running
from demo.documents import FLEET, GATE, HARDENED, NEW, OLD
from demo.governing import revoke
from demo.keys import APPROVER, ON_CALL, OPERATOR, OTHER_APPROVER
from demo.proving import prove
from demo.show import Kill, Show

DONE, REFUSED, ENDED_BADLY, WAITING = 0, 3, 6, 7
"""Exit codes of kedge that the acts expect; ``docs/cli.md`` has them all."""


Act = Callable[[Show], None]


def first(show: Show) -> None:
    """From 3.5.0 to 3.5.1, with two signatures, through a double kill."""
    begun = time.monotonic()
    screen = show.screen
    screen.act(f"Act 1 · {OLD} → {NEW}, two signatures, and a double kill")
    screen.say(
        "The plan first: nothing is done, no engine is asked. It says what happens to which member when, "
        "what can be undone, and who must sign. Its digest is what people sign."
    )
    show.kedge("plan", *show.documents(NEW))
    screen.say(
        f"{OPERATOR.name.capitalize()} is {OPERATOR.what}. She starts the migration: her key signs that plan."
    )
    run = show.start(NEW, None, OPERATOR, "upgrade")
    screen.say(
        "One member is the canary: stopped, copied, switched, started, looked at for two seconds. "
        "Then the run waits for people. Exit code 7 says just that."
    )
    show.kedge("watch", run, "--until-waiting", codes=(WAITING,))
    watching = sign(show, run)
    screen.say(
        "The rest of the fleet follows in two waves. In the middle of the first of them the demo kills "
        "kedge: the worker and the Temporal server, with SIGKILL, while a member is down."
    )
    member = show.moment(
        "a member of the first wave stands between stop and start",
        show.in_the_middle(run, 2),
        watching,
    )
    kill(show, member)
    watching.wait(DONE)
    show.versions(NEW)
    once(show, run, member)
    show.stretch("act 1", begun)


def sign(show: Show, run: str) -> Running:
    """The requester is refused, then two people sign: one with kedge, one with ssh-keygen alone.

    Before the last signature somebody begins to watch; that goes on.
    """
    screen = show.screen
    screen.say(
        "Two people have to agree. The requester herself does not count, although she has the role: "
        "exit code 3, with the rule that was broken. The run is unchanged."
    )
    words = ["approve", run, "--gate", GATE, "--key", f"keys/{OPERATOR.name}"]
    show.refused_by("requester", show.kedge(*words, codes=(REFUSED,)))
    screen.say(f"{APPROVER.name.capitalize()} is {APPROVER.what}; she signs with kedge.")
    show.approve(run, APPROVER, "canary looks good")
    screen.say(
        "With the next signature the run goes on by itself, so somebody watches it in another terminal. (On a "
        "terminal of its own this is a live tree; here it is a line for each change.)"
    )
    watching = show.watch(run)
    person = OTHER_APPROVER
    if shutil.which("ssh-keygen") is None:
        screen.say(
            f"{person.name.capitalize()} is {person.what}. Without kedge he could sign with OpenSSH's "
            "ssh-keygen, which this machine does not have; so he signs with kedge, too."
        )
        show.approve(run, person)
        return watching
    screen.say(
        f"{person.name.capitalize()} is {person.what}, and has no kedge to trust with his key: he takes "
        "the bytes and signs them with OpenSSH's ssh-keygen. Hardware keys work the same way."
    )
    request = ["order", "request", "approve", run, "--gate", GATE, "--person", person.name]
    show.kedge(*request, "-o", "order.json", last=3)
    show.commands.run(
        "ssh-keygen", "-Y", "sign", "-n", "kedge-order", "-f", f"keys/{person.name}", "order.json"
    )
    show.kedge("order", "send", "order.json", "order.json.sig")
    return watching


def kill(show: Show, member: str) -> None:
    """Worker and server die; the cluster does not notice; ``kedge up`` lets the run go on."""
    screen = show.screen
    begun = time.monotonic()
    worker, engine = show.shoot()
    screen.strike(
        f"kill -9 {worker} {engine}   (worker and Temporal server; {member} is stopped and not yet started)"
    )
    before = show.writer.acknowledged
    time.sleep(1.0)
    screen.seen(
        f"nothing of kedge runs; in a second {show.writer.acknowledged - before} more puts were "
        f"acknowledged by the {len(show.members) - 1} members that are up"
    )
    screen.say(
        "Nobody has to repair anything. Started again, kedge goes on from the step it had reached."
    )
    show.kedge("up")
    show.kills.append(
        Kill(worker, engine, time.monotonic() - begun, f"{member} between stop and start")
    )


def once(show: Show, run: str, member: str) -> None:
    """Every step of the run stands in the journals once; the member in the middle was stopped once, started once."""
    steps = {
        one.name: [step for step in show.steps(one.name) if step.key.startswith(f"{run}@")]
        for one in show.members
    }
    keys = [step.key for done in steps.values() for step in done]
    twice = len(keys) - len(set(keys))
    stops, starts = (
        sum(step.op == op and step.acted for step in steps[member]) for op in ("stop", "start")
    )
    show.judge(
        f"journals of the {len(steps)} hosts: {len(keys)} steps of {run}, {twice} of them twice; {member}, "
        f"which was in the middle, was stopped {stops} × and started {starts} ×",
        ok=twice == 0 and stops == starts == 1,
    )


def second(show: Show) -> None:
    """A release that cannot get healthy goes back by itself."""
    begun = time.monotonic()
    screen = show.screen
    screen.act(f"Act 2 · {NEW} → {HARDENED}: a bad release goes back by itself")
    screen.say(
        "The programs of this release are real and they start; but it comes with a stricter default, "
        "host-whitelist, and answers every client with 421. The canary never gets healthy, so nobody is "
        "even asked: the run takes it back. Exit code 6 says that it ended otherwise than wanted."
    )
    run = show.start(HARDENED, NEW, OPERATOR, "bad release")
    show.kedge("watch", run, codes=(ENDED_BADLY,))
    show.kedge("status", run)
    show.versions(NEW)
    show.stretch("act 2", begun)


def third(show: Show) -> None:
    """A stolen key is revoked and of no use; a rollback that on-call orders takes the fleet from a run at half way."""
    begun = time.monotonic()
    screen = show.screen
    screen.act(f"Act 3 · {NEW} → {OLD}: a stolen key, and on-call takes it back at half way")
    screen.say("A third migration, the other way round.")
    run = show.start(OLD, NEW, OPERATOR, "pre-empted")
    watching = show.watch(run)
    watching.until(f"waits for gate {GATE}")
    revoke(show, run)
    screen.say(f"{APPROVER.name.capitalize()} and {OTHER_APPROVER.name.capitalize()} do count.")
    show.approve(run, APPROVER)
    show.approve(run, OTHER_APPROVER)
    # Early enough that the order arrives well before the run's end on a slow machine, too.
    member = show.moment("the second member's turn comes", show.begun(run, 2), watching)
    screen.say(
        f"It is under way, {member} is just being moved. Say that an alarm goes off. {ON_CALL.name.capitalize()}, {ON_CALL.what}, "
        "may not order a rollback; but the policy lets him break the glass: alone, with a reason, and somebody has to "
        "look at it afterwards. He does not ask the run: his order takes the lease, raises the fence on every host, and "
        "goes back from what is seen there."
    )
    words = ["rollback", FLEET, "--key", f"keys/{ON_CALL.name}", "--break-glass"]
    back = show.kedge(*words, "--comment", "an alarm at half way, and no owner answers").last
    show.runs[back] = "on-call"
    if watching.wait(ENDED_BADLY, DONE).code == DONE:
        screen.say(
            "On this machine the run was quicker than the order, and had come to its end. It makes no difference: "
            "the rollback takes back what it did."
        )
    else:
        screen.say(
            "The run that lost the fleet is over. The rollback ends when every member is on its baseline."
        )
    show.kedge("watch", back, codes=(DONE,))
    show.versions(NEW)
    owe(show, back)
    show.kedge("list")
    show.stretch("act 3", begun)


def owe(show: Show, back: str) -> None:
    """Until somebody else has signed for what on-call did, nothing is started."""
    screen = show.screen
    screen.say(
        f"{OPERATOR.name.capitalize()} would go on right away. But the glass was broken, and as long as nobody has looked at "
        "that, no migration of this fleet is started."
    )
    refused = show.kedge(
        "start",
        *show.documents(OLD, NEW),
        "--key",
        f"keys/{OPERATOR.name}",
        codes=(REFUSED,),
        last=2,
    )
    show.refused_by("break-glass", refused)
    screen.say(f"{APPROVER.name.capitalize()} looks at it the next morning, and signs.")
    words = ["review", back, "--key", f"keys/{APPROVER.name}"]
    show.kedge(*words, "--comment", "looked at it with omar: the right call")


SCRIPT: tuple[Act, ...] = (first, second, third, prove)
"""The whole show, in order."""
