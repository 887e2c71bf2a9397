#!/usr/bin/env python3
"""Prints what is in a folder of results as markdown: table.py RESULTS"""
import json
import sys
from pathlib import Path

PEAK = 989.4e12
# Of what failed in a part; its JSON has all.
MOST = 4
BENCHES = ("bench-124m", "bench-0.5b", "bench-1.5b", "bench-1.2b")
SIDES = (("cordee", "cordee"), ("cordee-states", "cordee, bf16 states"), ("peer", "PyTorch, compiled"), ("peer-chunked", "PyTorch, compiled, loss in 8 chunks"))
CONVENTION = """MFU is model FLOP/s over 989.4 TFLOP/s, dense bf16 of an H100 SXM. Of each token a step takes
6 × (parameters that multiply: all but norms, and the embedding once where the head shares it) + 6 × layers × width × context
FLOP: causal attention counts half of the square, nothing that is computed twice counts twice."""


def flop_per_token(shape):
    dim, kv_heads = shape["dim"], shape.get("kv_heads") or shape["heads"]
    kv_width = dim // shape["heads"] * kv_heads
    block = 2 * dim * dim + 2 * dim * kv_width + 3 * dim * shape["ffn"]
    multiplied = shape["layers"] * block + shape["vocab"] * dim
    return 6 * multiplied + 6 * shape["layers"] * dim * shape["seq"]


def row(*cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def thousands(number):
    return f"{number:,.0f}"


def measured(told, side):
    """What one program told of a shape, and the record that it stands in. Ours falls back on its few first steps."""
    for name in (side, side + "-probe"):
        record = told["commands"].get(name) or {}
        if record.get("exit") == 0 and "json" in record:
            return record["json"], record
    return None, told["commands"].get(side) or told["commands"].get(side + "-probe") or {}


def memory(report, record):
    own = report.get("peak_gpu_mb") or (report.get("gpu") or {}).get("peak_bytes", 0) // 2**20
    card = (record.get("card") or {}).get("most_memory_mb")
    return f"{thousands(own) if own else '–'} / {thousands(card) if card else '–'}"


def training(results):
    lines = ["## The training step", "", CONVENTION, "",
             "Memory in MiB: what tensors took at most, as the program counts it, and what was in use on the card, sampled twice a second.", "",
             row("shape", "program", "tokens/s", "cordee's ratio to it", "MFU", "step, ms", "p10 to p90", "steps", "memory", "clock, MHz", "W"),
             row("---", "---", *["---:"] * 9)]
    for part in BENCHES:
        told = results.get(part)
        if told is None or "shape" not in told:
            continue
        shape, (ours, _) = told["shape"], measured(told, "cordee")
        for side, title in SIDES:
            report, record = measured(told, side)
            if report is None:
                why = record.get("why") or (f"exit {record['exit']}, see {part}.log" if "exit" in record else "not run")
                lines.append(row(shape["name"], title, why, *[""] * 8))
                continue
            rate, spread, card = report["tokens_per_s"], report.get("step_ms_spread") or {}, record.get("card") or {}
            ratio = f"**{ours['tokens_per_s'] / rate:.3f}**" if ours and side.startswith("peer") else ""
            lines.append(row(
                shape["name"], title, thousands(rate), ratio, f"{100 * flop_per_token(shape) * rate / PEAK:.1f} %", f"{report['step_ms']:.2f}",
                f"{spread['p10']:.2f} to {spread['p90']:.2f}" if spread else "", report.get("steps", ""), memory(report, record),
                card.get("sm_mhz", ""), card.get("power_w", "")))
    lines.append("")
    for part in BENCHES:
        shape = results.get(part, {}).get("shape")
        if shape:
            kv_heads = shape.get("kv_heads") or shape["heads"]
            lines.append(f"- {shape['name']}: width {shape['dim']}, {shape['layers']} layers, {shape['heads']} heads ({kv_heads} of keys and values), "
                         f"ffn {shape['ffn']}, vocabulary {shape['vocab']}, tied, {shape['batch']} sequences of {shape['seq']}; "
                         f"{flop_per_token(shape) / 1e9:.3f} GFLOP a token")
    return lines


def parts(results):
    """Where our step's time goes, beside the least that each part could take, and its products by themselves."""
    lines = []
    for part in BENCHES:
        told = results.get(part)
        if told is None or "shape" not in told:
            continue
        name = told["shape"]["name"]
        report, _ = measured(told, "cordee")
        if report and report.get("floor_ms"):
            lines += ["", f"### {name}: parts of a step, each waited for, beside their floors", "",
                      row("part", "pass", "calls", "ms", "floor, ms", "share of the speed of light"), row("---", "---", *["---:"] * 4)]
            for one in report["parts"]:
                floor, took = one.get("floor_s") or 0, one["seconds"]
                lines.append(row(one["name"], one.get("pass") or "", f"{one['calls']:.0f}", f"{1e3 * took:.2f}",
                                 *((f"{1e3 * floor:.2f}", f"{100 * floor / took:.0f} %") if floor and took else ("", ""))))
            lines.append(row("all", "", "", f"{report['step_ms']:.2f}", f"{report['floor_ms']:.2f}", f"{100 * report['floor_ms'] / report['step_ms']:.0f} %"))
        report, _ = measured(told, "cordee-products")
        if report and report.get("products"):
            lines += ["", f"### {name}: products by themselves, {report['products_ms']:.2f} ms of a step together, "
                      f"{report['products_best_ms']:.2f} by the fastest of the library's suggestions", "",
                      row("product", "of", "rows x in x out", "calls", "ms", "TFLOP/s", "fastest, ms", "its number"), row("---", "---", *["---:"] * 6)]
            for one in report["products"]:
                n, inner, out = one["sizes"]
                lines.append(row(one["name"], one["result"], f"{n} x {inner} x {out}", one["calls"] or "not used", f"{1e3 * one['seconds']:.3f}",
                                 f"{2e-12 * n * inner * out / one['seconds']:.0f}", f"{1e3 * one['best_s']:.3f}", one["best"]))
    return lines


def outcome(told):
    if "skipped" in told:
        return "skipped: " + told["skipped"]
    return "passed" if told["passed"] else "**failed**"


def details(told):
    """What failed, and where results were compared with bounds, how near they came."""
    found = [f"{name}: {record.get('why') or 'exit ' + str(record['exit'])}" for name, record in told["commands"].items() if record["exit"] != 0]
    found += [f"no: {name}" for name, check in told["checks"].items() if not check["passed"]]
    if len(found) > MOST:
        found[MOST:] = [f"and {len(found) - MOST} more"]
    if "fault" in told:
        found.append(told["fault"])
    nearest = []
    for name, record in told["commands"].items():
        report = record.get("json") or {}
        if not isinstance(report, dict):
            continue
        for finding in report.get("findings") or []:
            nearest.append((share(finding["error"], finding["bound"]), f"{finding['operator']}, {finding['case']}, {finding['result']}"))
        for number, compared in (report.get("compared") or {}).items():
            nearest.append((share(compared["largest_relative_difference"], compared["bound"]), f"{name}, {number}"))
    if nearest:
        most, where = max(nearest, key=lambda pair: pair[0])
        far = sum(not part <= 1 for part, _ in nearest)
        found.append(f"{len(nearest)} results, {far} too far; the farthest at {most:.2g} of its bound: {where}")
    return "; ".join(found)


def share(error, bound):
    """Of a bound; a NaN, which JSON has as null, is the worst."""
    if error is None or error != error:
        return float("inf")
    return error / bound if bound else (0.0 if error == 0 else float("inf"))


def main(folder):
    results = {}
    for path in sorted(folder.glob("*.json")):
        told = json.loads(path.read_text())
        if isinstance(told, dict) and "part" in told:
            results[told["part"]] = told
    commits = {tuple(told["commit"] or ["unknown"]) for told in results.values()}
    lines = ["# Results", "", *[line for commit in sorted(commits) for line in (f"- {text}" for text in commit)]]
    if any(told.get("small") for told in results.values()):
        lines += ["", "**Tiny shapes and few steps, to try the kit: no figure here says anything of speed.**"]
    cards = sorted({(told.get("machine") or {}).get("card") or "no card" for told in results.values()})
    if len(cards) > 1:
        lines += ["", f"**Results of more than one machine: {'; '.join(cards)}**"]
    card = results.get("doctor", {}).get("commands", {}).get("card", {}).get("text", "").splitlines()
    lines += [""] + (["Card, as `nvidia-smi` tells it:", "", "```", *card, "```"] if card else ["`doctor` has not told of the card."])
    if any(part in results for part in BENCHES):
        lines += [""] + training(results) + parts(results)
    lines += ["", "## Checks", "", row("part", "", "", "s"), row("---", "---", "---", "---:")]
    for part, told in results.items():
        if part not in BENCHES and part != "table":
            lines.append(row(part, outcome(told), details(told).replace("|", "\\|"), told.get("seconds", "")))
    print("\n".join(lines))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
