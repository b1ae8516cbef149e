"""The tables of the benchmarks of speed and memory, as the pages show them."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.core.common import markdown_table
from benchmarks.core.pages import result, source
from benchmarks.speed import beside as pairs
from benchmarks.speed import flow_batches as batches
from benchmarks.speed import flow_memory as memory
from benchmarks.speed import flow_speed as speed
from benchmarks.speed import latent, latent_memory
from benchmarks.speed import materialise as copies
from benchmarks.speed import throughput as augmentations


def flow_speed() -> str:
    cells = speed.table(result("flow_speed")["results"])
    return f"{markdown_table(cells)}\n\n{source('flow_speed')}"


def flow_speed_equal() -> str:
    found = result("flow_speed_equal")["results"]
    cells = speed.equal_table(found), speed.profile_table(found)
    return "\n\n".join([*map(markdown_table, cells), source("flow_speed_equal")])


def flow_batches() -> str:
    cells = batches.table(result("flow_batches")["results"]["rows"])
    return f"{markdown_table(cells)}\n\n{source('flow_batches')}"


def flow_memory() -> str:
    record = result("flow_memory")
    s, found = record["settings"], record["results"]
    growth = found["growth_at_twice_the_depth"].items()
    grown = ", ".join(f"{v:.2f} at depth {d}" for d, v in growth)
    what = f"{s['flow']}, {s['hidden']} hidden channels, {record['data']}, {s['net_dtype']}"
    head = f"{record['claim'].capitalize()}: {grown}. {what}."
    return f"{head}\n\n{markdown_table(memory.table(found))}\n\n{source('flow_memory')}"


def throughput(name: str = "throughput") -> str:
    record = result(name)
    found = record["results"]
    head = ""
    if found["claim_holds"] is not None:  # the claim is about one thread
        ratios = []
        for arm, own in found["claim_ratios"].items():
            each = ", ".join(f"{v:.2f} at {size} px" for size, v in own.items())
            ratios.append(f"{arm}, {each}")
        head = f"Claim: {record['claim']}. Found: {'; '.join(ratios)}.\n\n"
    sizes = sorted({row["size"] for row in found["rows"]})
    return f"{head}{augmentations.table(found['rows'], sizes)}\n\n{source(name)}"


def throughput_2_threads() -> str:
    return throughput("throughput_2_threads")


def throughput_single() -> str:
    return throughput("throughput_single")


def throughput_cuda() -> str:
    return throughput("throughput_cuda")


def beside() -> str:
    record = result("beside")
    head = f"Claim: {record['claim']}"
    return f"{head}\n\n{markdown_table(pairs.table(record['results']))}\n\n{source('beside')}"


def materialise() -> str:
    record = result("materialise")
    cells = copies.table(record["results"]["rows"])
    return f"{record['data']}.\n\n{markdown_table(cells)}\n\n{source('materialise')}"


def latent_cost() -> str:
    record = result("latent_cost")
    rows, s = record["results"]["rows"], record["settings"]
    busy = sorted({f"{r['side']} px, {r['threads']} threads" for r in rows if r["disturbed"]})
    note = f" Disturbed by other work: {'; '.join(busy)}." if busy else ""
    head = f"{record['data']}, `{s['autoencoder']}`, {s['modes']} modes, strength {s['strength']}."
    return f"{head}{note}\n\n{markdown_table(latent.table(rows))}\n\n{source('latent_cost')}"


def memory_of_latents() -> str:
    record = result("latent_memory")
    rows = record["results"]["rows"]
    found = f"Found: {max(r['ratio'] for r in rows):.2f}."
    head = f"Claim: {record['claim']}. {found} {record['data'].capitalize()}."
    return f"{head}\n\n{markdown_table(latent_memory.table(rows))}\n\n{source('latent_memory')}"


TABLES: dict[str, Callable[[], str]] = {
    "beside": beside,
    "flow_speed": flow_speed,
    "flow_speed_equal": flow_speed_equal,
    "flow_batches": flow_batches,
    "flow_memory": flow_memory,
    "materialise": materialise,
    "latent_cost": latent_cost,
    "latent_memory": memory_of_latents,
    "throughput": throughput,
    "throughput_2_threads": throughput_2_threads,
    "throughput_single": throughput_single,
    "throughput_cuda": throughput_cuda,
}
