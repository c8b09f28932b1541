"""The table as a picture: for each row one bar a peer, how many times better ours is, on a logarithmic axis. SVG, no
libraries."""
import math
from xml.sax.saxutils import escape

LABEL, PLOT, BAR, GAP, TOP = 190, 520, 9, 8, 46
LOW, HIGH = 1 / 4, 64
COLOURS = {'qsd': '#3367a6', 'nbdkit': '#7a4fa3', 'fio': '#8a8a8a', 'cp': '#8a8a8a', 'dd': '#8a8a8a', 'echo': '#8a8a8a',
           'ceiling': '#8a8a8a'}
OTHER = '#8a8a8a'


def x_of(ratio):
    span = math.log(HIGH / LOW)
    return LABEL + PLOT * math.log(min(max(ratio, LOW), HIGH) / LOW) / span


def text(x, y, words, size=11, anchor='start', extra=''):
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}" {extra}>{escape(words)}</text>'


def axis(height):
    out, ratio = [], LOW
    while ratio <= HIGH:
        x, strong = x_of(ratio), ratio == 1
        out.append(f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{height - 8}" '
                   f'stroke="{"#333" if strong else "#ddd"}"/>')
        out.append(text(x, TOP - 12, f'{ratio:g}x' if ratio >= 1 else f'1/{1 / ratio:g}', 10, 'middle'))
        ratio *= 2
    return out


def svg(bars, caption):
    """@bars: (row, [(peer, times better)])."""
    y, body = TOP, []
    for row, ratios in bars:
        body.append(text(LABEL - 8, y + BAR * len(ratios) / 2 + 4, row, 11, 'end'))
        for peer, ratio in ratios:
            a, b = sorted((x_of(1), x_of(ratio)))
            body.append(f'<rect x="{a:.1f}" y="{y}" width="{max(b - a, 1):.1f}" height="{BAR - 1}" '
                        f'fill="{COLOURS.get(peer, OTHER)}" opacity="{1 if ratio >= 1 else 0.5}"/>')
            body.append(text(max(b, x_of(1)) + 4, y + BAR - 1, f'{ratio:.2f} {peer}', 9, extra='fill="#555"'))
            y += BAR
        y += GAP
    height, width = y + 8, LABEL + PLOT + 80
    head = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="sans-serif">', f'<rect width="{width}" height="{height}" fill="white"/>',
            text(LABEL, 16, caption, 12)]
    return '\n'.join(head + axis(height) + body + ['</svg>', ''])
