"""What the requests of bench.speculation ask and answer: an edited file, a summary, and a text of its own."""

from __future__ import annotations

FILE = '''"""A small inventory: items on shelves, how many there are, and what has to be ordered."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Item:
    """One article. `price` is in cents, `reserved` the part of `count` that is promised to somebody."""

    name: str
    shelf: str
    count: int
    price: int
    reserved: int = 0
    tags: list[str] = field(default_factory=list)

    @property
    def available(self) -> int:
        return self.count - self.reserved

    @property
    def value(self) -> int:
        return self.count * self.price


class Inventory:
    """All items by name, read from and written to a CSV file."""

    def __init__(self, path: Path):
        self.path = path
        self.items: dict[str, Item] = {}

    def load(self) -> None:
        """Read the file. An item that is listed twice is an error."""
        with self.path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                item = Item(
                    name=row["name"],
                    shelf=row["shelf"],
                    count=int(row["count"]),
                    price=int(row["price"]),
                    reserved=int(row.get("reserved") or 0),
                    tags=(row.get("tags") or "").split(),
                )
                if item.name in self.items:
                    raise ValueError(f"{item.name} is listed twice")
                self.items[item.name] = item

    def save(self) -> None:
        """Write the file, items in the order of their names."""
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["name", "shelf", "count", "price", "reserved", "tags"])
            for name in sorted(self.items):
                item = self.items[name]
                writer.writerow(
                    [item.name, item.shelf, item.count, item.price, item.reserved, " ".join(item.tags)]
                )

    def add(self, name: str, count: int) -> None:
        """Put `count` more of an item on its shelf."""
        if count <= 0:
            raise ValueError("count must be positive")
        self.items[name].count += count

    def take(self, name: str, count: int) -> None:
        """Take `count` of an item from its shelf; what is reserved stays."""
        item = self.items[name]
        if count > item.available:
            raise ValueError(f"only {item.available} of {name} are available")
        item.count -= count

    def reserve(self, name: str, count: int) -> None:
        """Promise `count` of an item to somebody."""
        item = self.items[name]
        if count > item.available:
            raise ValueError(f"only {item.available} of {name} are available")
        item.reserved += count

    def release(self, name: str, count: int) -> None:
        """Take back a promise."""
        item = self.items[name]
        if count > item.reserved:
            raise ValueError(f"only {item.reserved} of {name} are reserved")
        item.reserved -= count

    def on_shelf(self, shelf: str) -> list[Item]:
        """Items on one shelf, by name."""
        return sorted(
            (item for item in self.items.values() if item.shelf == shelf), key=lambda item: item.name
        )

    def with_tag(self, tag: str) -> list[Item]:
        """Items that carry a tag, by name."""
        return sorted((item for item in self.items.values() if tag in item.tags), key=lambda item: item.name)

    def to_order(self, least: int) -> dict[str, int]:
        """How many of each item are missing to `least` available ones."""
        return {
            item.name: least - item.available for item in self.items.values() if item.available < least
        }

    def total_value(self) -> int:
        """What everything is worth, in cents."""
        return sum(item.value for item in self.items.values())
'''

# What an agent that edits the file would change.
_EDITS = (
    ("class Inventory:", "class Warehouse:"),
    ("import csv\n", "import csv\nimport logging\n"),
    ("    price: int\n", '    price: int\n    supplier: str = ""\n'),
    (
        'raise ValueError("count must be positive")',
        'raise ValueError(f"count must be positive, found {count}")',
    ),
    (
        "        item.count -= count\n",
        '        item.count -= count\n        logging.info("%d of %s taken", count, name)\n',
    ),
    (
        "        return sum(item.value for item in self.items.values())\n",
        "        return sum(item.value for item in self.items.values())\n\n"
        "    def suppliers(self) -> set[str]:\n"
        '        """Everybody that something is bought from."""\n'
        "        return {item.supplier for item in self.items.values() if item.supplier}\n",
    ),
)


def edited(file: str) -> str:
    """The file after the edits."""
    for old, new in _EDITS:
        assert file.count(old) == 1, f"{old!r} is not there once"
        file = file.replace(old, new)
    return file


ARTICLE = """\
The harbour bridge at Sandvoort, closed since the storm of last November, will open again to traffic on
the first of May, three weeks earlier than planned. The provincial roads office announced this on Tuesday
after engineers had finished the last of four load tests. For the test, twelve lorries filled with wet
sand, together weighing 384 tonnes, stood on the middle span for six hours while lasers measured how far
the deck sank. It sank by 41 millimetres; up to 55 would have been allowed.

The storm had driven the empty barge Margaretha III against the second pier in the night of 17 November.
Nobody was hurt, but divers found a crack of almost two metres below the waterline, and the roads office
closed the bridge the same morning. Since then the 21,000 cars and lorries that cross it on a working day
have had to take the tunnel at Oudeveer or the ferry, which the province has run free of charge since
December. The detour adds 26 minutes on average; in the first weeks, before the tunnel's toll booths were
removed, it was more than an hour.

Repairing the pier cost 14.2 million euros, a good deal less than the 19 million that had been set aside.
"We could save the foundation, which nobody had expected," said Hanneke de Vries, the project's chief
engineer. Instead of pulling down the pier, her team put a steel collar around it, eleven metres high, and
filled the gap with a concrete that hardens under water. Two further piers will get such collars over the
next two summers, as a precaution. The bridge stays open during that work, though one lane in each
direction will be closed at night.

The owner of the barge, the shipping company Van Dalen & Zonen, and its insurer have so far refused to
pay. They argue that the mooring at which the Margaretha III lay belongs to the port, and that its
bollards had been reported as loose a year before. The port of Sandvoort denies that. A court in the
provincial capital will hear the case in September; until then the province pays the bill from its reserve
for disasters.

Shopkeepers in the old harbour quarter, which lies at the southern end of the bridge, have lost up to a
third of their customers, according to a survey by the chamber of commerce. Some 40 of them have applied
for help from a fund of 800,000 euros that the town council set up in January; 29 applications were
granted. "The money kept us going, but what we need is the bridge," said Pim Aarts, who sells bicycles on
the quay. The council wants to celebrate the opening with a street market on the bridge itself: on 30
April, the day before the first cars, it belongs to those on foot. The ferry will go on until the end of
May, in case something unforeseen turns up, the roads office said.
"""

SUMMARY = """\
The harbour bridge at Sandvoort will open again to traffic on the first of May, three weeks earlier than
planned. It had been closed since 17 November, when a storm drove the empty barge Margaretha III against
the second pier and divers found a crack of almost two metres below the waterline. In the last of four
load tests, lorries weighing 384 tonnes made the deck sink by 41 millimetres, where up to 55 would have
been allowed.

The repair cost 14.2 million euros instead of the 19 million that had been set aside: chief engineer
Hanneke de Vries and her team saved the foundation and put a steel collar around the pier, filled with a
concrete that hardens under water. Two further piers will get such collars over the next two summers,
while the bridge stays open. Who pays is disputed. Van Dalen & Zonen, the owner of the barge, and its
insurer refuse to, since the bollards of the mooring had been reported as loose; the port of Sandvoort
denies that, and a court will hear the case in September.

Drivers, 21,000 on a working day, had to use the tunnel at Oudeveer or a free ferry, a detour of 26
minutes on average. Shopkeepers in the old harbour quarter lost up to a third of their customers; 29 of
some 40 applications for help from a fund of 800,000 euros were granted. On 30 April, the day before the
first cars, there will be a street market on the bridge.
"""

QUESTION = (
    "Tell me something about how bees find their way home. Take your time, and do not use any lists.\n\n"
)

ANSWER = """\
A forager that leaves her hive for the first time does not fly straight off. She turns round in the
doorway, hovers, and looks back, drawing wider and wider arcs while the entrance shrinks below. Biologists
call these learning flights. What she stores is not a map as we would draw one but something closer to a
handful of photographs, each tied to a heading: how the skyline, a fence or that lone poplar appear when
the nest lies dead ahead.

Further away, celestial cues take over. Even a patch of blue is enough, because scattered sunlight is
polarised in a pattern centred upon the sun, and a strip of specialised cells along the upper rim of every
compound eye reads it. Since our star wanders through about fifteen degrees each hour, an inner clock has
to correct the bearing; anaesthetise an insect at noon, wake her around four, and she sets out wrong by
just the angle you would predict.

Distance is measured by what streams past. Nineties experiments with narrow tunnels showed it: checkered
walls made short trips look long, so that dancers inside overstated them by hundreds of metres, whereas
horizontal stripes, giving hardly any motion, made journeys vanish altogether. Combining both quantities,
direction plus length, moment after moment, yields a running sum that points back to base whatever detours
were taken. Deep in the brain, a ring-shaped structure seems to hold this vector, neuron by neuron, much
as a compass needle might be smeared across sixteen cups.

Closer to the goal scent matters too. Nestmates stand at the threshold, raise their abdomens and fan a
lemony perfume outward whenever wind or rain has muddled things. Only guards, sniffing arrivals, make the
final decision whether someone belongs here. Drift happens anyway: beekeepers who line up identical white
boxes learn quickly that painting doors in different colours saves plenty of strays, particularly yellow
against blue, which these eyes separate best.
"""

#: Workload -> prompt and answer.
WORKLOADS = {
    "copying": (
        "Rename the class to Warehouse, log what is taken, add suppliers; give me the whole file.\n\n"
        + FILE
        + "\nThe file after the edits:\n\n",
        edited(FILE),
    ),
    "summarising": (f"Summarise this article in about 200 words.\n\n{ARTICLE}\n\nSummary:\n\n", SUMMARY),
    "nothing to copy": (QUESTION, ANSWER),
}
