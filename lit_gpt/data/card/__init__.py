"""The data card that every `prepare` leaves: what came in, what was thrown away and why, what is there now.

`collect.py` makes the numbers (`card.json`), `page.py` the page that shows them (`card.html`): one file, pictures as
inline SVG, no script and nothing from elsewhere.
"""
