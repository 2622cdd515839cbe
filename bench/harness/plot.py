# SPDX-License-Identifier: MIT
"""Plots as SVG, written by hand: the same numbers give the same bytes, and nothing has to be installed.

Two kinds: dots (rows of ratios on a logarithmic axis) and lines (one for each column, labelled at its end). There is no background,
and every colour has contrast on white and on dark pages; columns differ in shape too, so colours need not be told apart.
"""
import math

TEXT = "#768390"
GRID = "#76839040"
FONT = "font-family=\"-apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif\""

# Name: colour, marker. Ours is the strongest and drawn last. Others get what is left, in order.
STYLES = {
    "libpercpu": ("#2a86e8", "circle"),
    "libpercpu pin:none": ("#2a86e8", "circle-open"),
    "glibc": ("#848d97", "square"),
    "jemalloc": ("#dd6b20", "diamond"),
    "jemalloc percpu_arena": ("#b7560f", "diamond-open"),
    "tcmalloc (gperftools)": ("#12966f", "triangle"),
    "mimalloc": ("#c4559b", "down"),
    "tbbmalloc": ("#a98300", "cross"),
    "librseq": ("#12966f", "triangle"),
    "calloc": ("#848d97", "square"),
}
OTHERS = [("#8a63d2", "plus"), ("#d1436b", "square-open"), ("#2f9fb3", "triangle-open"), ("#7a8f1a", "circle-open"),
          ("#9a6a4f", "down-open"), ("#4f8f4f", "cross")]


def style_of(name, names):
    if name in STYLES:
        return STYLES[name]
    strangers = [other for other in names if other not in STYLES]
    return OTHERS[strangers.index(name) % len(OTHERS)]


def escape(text):
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def text(x, y, words, anchor="start", size=13, colour=TEXT, weight="400"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" fill="{colour}">'
            f"{escape(words)}</text>")


def line(x1, y1, x2, y2, colour=GRID, width=1.0, dash=""):
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"{dashes}/>'


def marker(x, y, colour, shape, r=5.0):
    kind, _, open_ = shape.partition("-")
    paint = f'fill="none" stroke="{colour}" stroke-width="1.8"' if open_ else f'fill="{colour}"'
    points = {"square": [(-.85, -.85), (.85, -.85), (.85, .85), (-.85, .85)], "diamond": [(0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)],
              "triangle": [(0, -1.1), (1.05, .85), (-1.05, .85)], "down": [(0, 1.1), (1.05, -.85), (-1.05, -.85)]}
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" {paint}/>'
    if kind in points:
        corners = " ".join(f"{x + dx * r:.1f},{y + dy * r:.1f}" for dx, dy in points[kind])
        return f'<polygon points="{corners}" {paint}/>'
    a = r * (.8 if kind == "cross" else 1.1)
    ends = [(-a, -a, a, a), (-a, a, a, -a)] if kind == "cross" else [(-a, 0, a, 0), (0, -a, 0, a)]
    return "".join(line(x + x1, y + y1, x + x2, y + y2, colour, 2.2) for x1, y1, x2, y2 in ends)


def number(value):
    """Three digits that count, as people write them."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value)) + 1e-9))
    rounded = round(value, digits)
    return f"{rounded:,.{digits}f}" if abs(value) < 100 else f"{value:,.0f}"


def tick(value):
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def log_ticks(low, high):
    """1, 2, 5, 10, ... within; only powers of ten over a wide range."""
    steps = (1, 2, 5) if high / low < 2000 else (1,)
    ticks = [step * 10.0 ** power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for step in steps]
    return [value for value in ticks if low * .999 <= value <= high * 1.001]


def document(width, height, title, subtitle, body):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" {FONT}>\n'
            f"<title>{escape(title)}</title>\n" + text(16, 26, title, size=17, weight="600") + "\n" + text(16, 46, subtitle, size=12.5)
            + "\n" + "\n".join(body) + "\n</svg>\n")


def legend(names, all_names, width, y):
    """The markers and names, in as many lines as they take. Returns: what was drawn, and the y below it."""
    drawn, x = [], 22.0
    for name in names:
        colour, shape = style_of(name, all_names)
        room = 24 + 7.4 * len(name)
        if x + room > width - 10:
            x, y = 22.0, y + 20
        drawn += [marker(x, y - 4.5, colour, shape), text(x + 11, y, name, weight="600" if name == "libpercpu" else "400",
                                                          colour=colour if name == "libpercpu" else TEXT)]
        x += room
    return drawn, y + 8


def dots(title, subtitle, rows, names, axis, reference="", ours="libpercpu"):
    """rows: (label, {name: ratio}), less is better; the value of ours is written at the right. reference: what 1 is."""
    width, right, pitch = 860, 70, 27
    left = max(190, 24 + 7.2 * max(len(label) for label, _ in rows))
    values = [value for _, cells in rows for value in cells.values()]
    low, high = min([*values, .9]) / 1.08, max([*values, 1.1]) * 1.08
    least, most = low, high
    low, high = max(low, .02), min(high, 30)
    if least < low or most > high:
        subtitle += "; what lies beyond the axis stands at its end"

    def place(value):
        return left + (math.log(min(max(value, low), high)) - math.log(low)) / (math.log(high) - math.log(low)) * (width - left - right)

    drawn = [name for name in names if name != reference and any(name in cells for _, cells in rows)]
    body, top = legend(drawn, names, width, 72)
    top += 18
    bottom = top + pitch * len(rows)
    ticks = log_ticks(low, high)
    for value in ticks:
        body.append(line(place(value), top - 8, place(value), bottom, GRID if value != 1 else TEXT, 1 if value != 1 else 1.6))
        body.append(text(place(value), bottom + 16, tick(value), "middle", 12))
    body.append(text((left + width - right) / 2, bottom + 36, axis, "middle", 12.5))
    body.append(text(width - 14, top - 12, ours, "end", 12, STYLES[ours][0], "600"))
    for index, (label, cells) in enumerate(rows):
        y = top + pitch * (index + .5)
        body += [line(left, y, width - right, y), text(left - 12, y + 4.5, label, "end")]
        for name in [*(n for n in drawn if n != ours), *([ours] if ours in drawn else [])]:
            if name in cells:
                colour, shape = style_of(name, names)
                body.append(marker(place(cells[name]), y, colour, shape, 6.5 if name == ours else 4.6))
        if ours in cells:
            body.append(text(width - 14, y + 4.5, number(cells[ours]), "end", 13, STYLES[ours][0], "600"))
    return document(width, int(bottom + 48), title, subtitle, body)


def spread(places, least):
    """Moves places (sorted or not) apart until they are `least` from each other, as little as it takes."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [places[i] for i in order]
    for _ in range(200):
        for i in range(len(moved) - 1):
            overlap = least - (moved[i + 1] - moved[i])
            if overlap > 0:
                moved[i] -= overlap / 2
                moved[i + 1] += overlap / 2
    result = [0.0] * len(places)
    for i, value in zip(order, moved):
        result[i] = value
    return result


def lines(title, subtitle, series, x_axis, y_axis, names=None, log_y=True, ours="libpercpu"):
    """series: {name: [(x, y), ...]}, x on a logarithmic axis. Each line is labelled at its end with its name and last value."""
    names = names or list(series)
    width, height, left, right, top = 860, 430, 66, 220, 72
    bottom = height - 56
    xs = sorted({x for points in series.values() for x, _ in points})
    ys = [y for points in series.values() for _, y in points]
    low, high = (min(ys) / 1.15, max(ys) * 1.15) if log_y else (0, max(ys) * 1.06)
    span = math.log(xs[-1] / xs[0]) or 1

    def place_x(x):
        return left + math.log(x / xs[0]) / span * (width - left - right)

    def place_y(y):
        part = math.log(y / low) / math.log(high / low) if log_y else (y - low) / (high - low)
        return bottom - part * (bottom - top)

    body = []
    if log_y:
        ticks = log_ticks(low, high)
    else:
        step = 10.0 ** math.floor(math.log10(high))
        step = next(s for s in (step / 5, step / 2, step, step * 2) if high / s <= 6)
        ticks = [step * i for i in range(int(high / step) + 1)]
    for value in ticks:
        body += [line(left, place_y(value), width - right, place_y(value)), text(left - 8, place_y(value) + 4.5, tick(value), "end", 12)]
    for x in xs:
        body += [line(place_x(x), bottom, place_x(x), bottom + 5, TEXT), text(place_x(x), bottom + 20, f"{x:,}", "middle", 12)]
    body += [text((left + width - right) / 2, bottom + 42, x_axis, "middle", 12.5), text(16, top - 8, y_axis, "start", 12.5)]
    ordered = [name for name in names if name in series and name != ours] + ([ours] if ours in series else [])
    label_ys = spread([place_y(series[name][-1][1]) for name in ordered], 16)
    for name, label_y in zip(ordered, label_ys):
        colour, shape = style_of(name, names)
        points = [(place_x(x), place_y(y)) for x, y in series[name]]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{3 if name == ours else 1.7}" '
                    f'stroke-linejoin="round"/>')
        body += [marker(x, y, colour, shape, 5.5 if name == ours else 4) for x, y in points]
        end_x, end_y = points[-1]
        body.append(line(end_x + 7, end_y, width - right + 24, label_y, colour, .8))
        body.append(text(width - right + 28, label_y + 4.5, f"{name}\u2002{number(series[name][-1][1])}", "start", 13, colour,
                         "600" if name == ours else "400"))
    return document(width, height, title, subtitle, body)


def bars(title, subtitle, panels, axis, strong=()):
    """panels: (heading, [(label, value), ...]) on one axis, less is better; those in `strong` are ours. The value stands behind its bar."""
    width, left, right, pitch, y = 860, 250, 80, 26, 66.0
    high = max(value for _, rows in panels for _, value in rows)
    body = []
    for heading, rows in panels:
        body.append(text(left, y + 12, heading, weight="600"))
        y += 20
        for label, value in rows:
            length = value / high * (width - left - right)
            colour = STYLES["libpercpu"][0] if label in strong else STYLES["glibc"][0]
            weight = "600" if label in strong else "400"
            body += [text(left - 12, y + 17, label, "end", 13, colour if label in strong else TEXT, weight),
                     f'<rect x="{left}" y="{y + 5:.0f}" width="{max(length, 1):.1f}" height="{pitch - 10}" rx="2" fill="{colour}"/>',
                     text(left + length + 8, y + 17, number(value), "start", 13, colour if label in strong else TEXT, weight)]
            y += pitch
        y += 14
    body.append(text(left, y + 6, axis, "start", 12.5))
    return document(width, int(y + 20), title, subtitle, body)
