"""What stands in the cluster, whatever order the news of it comes in."""

from __future__ import annotations

from typing import Any

from emoe_operator.cache import Cache
from emoe_operator.intake import Intake
from emoe_operator.kinds import CHILDREN, MOED, POD

DEPLOYMENT = CHILDREN[0]
TINY = ("default", "tiny")


def body(name: str, version: int, *, uid: str = "u", owner: str | None = "tiny") -> dict[str, Any]:
    labels = {} if owner is None else {"emoe.dev/moedeployment": owner}
    meta = {"name": name, "namespace": "default", "uid": uid, "resourceVersion": str(version), "labels": labels}
    return {"metadata": {**meta, "managedFields": [{"manager": "someone"}]}}


def version_of(cache: Cache) -> str:
    return str(cache.children(TINY)["Deployment", "tiny-worker"]["metadata"]["resourceVersion"])


def test_a_late_event_does_not_undo_what_an_answer_told() -> None:
    cache = Cache()
    assert cache.put(DEPLOYMENT, body("tiny-worker", 9)) == TINY
    assert cache.put(DEPLOYMENT, body("tiny-worker", 8)) is None
    assert version_of(cache) == "9"
    assert cache.put(DEPLOYMENT, body("tiny-worker", 10)) == TINY
    assert version_of(cache) == "10"


def test_a_new_object_of_an_old_name_takes_its_place() -> None:
    cache = Cache()
    cache.put(DEPLOYMENT, body("tiny-worker", 9, uid="old"))
    cache.put(DEPLOYMENT, body("tiny-worker", 12, uid="new"))
    cache.remove(DEPLOYMENT, body("tiny-worker", 11, uid="old"))
    assert version_of(cache) == "12"


def test_objects_without_an_owner_are_not_kept() -> None:
    cache = Cache()
    assert cache.put(DEPLOYMENT, body("stranger", 1, owner=None)) is None


def test_pods_are_kept_apart_from_children_and_without_book_keeping() -> None:
    cache = Cache()
    cache.put(POD, body("tiny-worker-0", 1))
    assert cache.children(TINY) == {}
    (pod,) = cache.pods(TINY)
    assert "managedFields" not in pod["metadata"]
    assert pod["kind"] == "Pod"


def test_a_list_takes_ghosts_away_but_nothing_that_is_newer_than_itself() -> None:
    cache = Cache()
    cache.put(DEPLOYMENT, body("tiny-ghost", 5, uid="ghost"))
    cache.put(DEPLOYMENT, body("tiny-fresh", 30, uid="fresh"))
    cache.put(DEPLOYMENT, body("tiny-worker", 6, uid="known"))
    changed = cache.replace(DEPLOYMENT, [body("tiny-worker", 6, uid="known")], namespace=None, version=20)
    assert changed == {TINY}
    assert set(cache.children(TINY)) == {("Deployment", "tiny-fresh"), ("Deployment", "tiny-worker")}
    assert cache.replace(DEPLOYMENT, [body("tiny-worker", 6, uid="known")], namespace="other", version=40) == set()


class Wakes:
    def __init__(self) -> None:
        self.keys: list[tuple[str, str]] = []

    def add(self, key: tuple[str, str]) -> None:
        self.keys.append(key)


def test_nothing_is_looked_at_before_everything_was_listed() -> None:
    wakes = Wakes()
    intake = Intake(Cache(), wakes)  # type: ignore[arg-type]
    intake.seen(MOED, body("tiny", 1, owner=None))
    intake.seen(DEPLOYMENT, body("tiny-worker", 2))
    assert wakes.keys == []
    intake.complete()
    assert wakes.keys == [TINY]
    intake.seen(DEPLOYMENT, body("tiny-worker", 2))
    assert wakes.keys == [TINY]
    intake.deleted(DEPLOYMENT, body("tiny-worker", 3))
    assert wakes.keys == [TINY, TINY]
