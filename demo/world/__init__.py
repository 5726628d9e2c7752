"""A world of cartoon characters whose truth is known to the pixel.

| Question | File |
|---|---|
| What is in a picture? | `record.py`: a record holds everything, the same record gives the same picture |
| How does it look? | `draw.py`, from polygons of `figure.py`, `garment.py` and `scenes.py` in a style of `styles.py` |
| What is true of it? | `truth.py`: masks, body parts, parsing, joints, and where a shirt's pixels lie on the flat one |
| What does one say of it? | `captions.py` |
"""
