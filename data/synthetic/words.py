"""The words of which the embedded base's tokenizer makes one token each.

The first group is what its world is drawn from; the other words only have a token, as rare words have in a large
model: the base has never been shown what they mean. Everything else is spelt in pieces, down to bytes.
"""

from __future__ import annotations

from data.synthetic.world import NUMBERS, PALETTE, SHAPES, TEXTURES

WORLD = (*NUMBERS, *PALETTE, *TEXTURES, *SHAPES, *(f"{s}s" for s in SHAPES), "an", "and", "on", "background", "texture")
ENGLISH = (
    "the of in with to is it for as at by from this that its no not and or one five many some small large big new old "
    "photo picture image drawing painting pattern material surface object close up rendering style art view detail "
    "slice slices section scan volume carbon composite composites fibre fiber fabric textile resin part material "
    "dry compacted injected thickness warp weft weave tow layer void dark light bright grey gray brown pink colour "
    "horse zebra zebras beach road skin person galaxy brioche house tree flower dog cat ball line lines shape shapes"
).split()
DTD = (
    "banded blotchy braided bubbly bumpy chequered cobwebbed cracked crosshatched crystalline dotted fibrous flecked "
    "freckled frilly gauzy grid grooved honeycombed interlaced knitted lacelike lined marbled matted meshed paisley "
    "perforated pitted pleated polka porous potholed scaly smeared spiralled sprinkled stained stratified striped "
    "studded swirly veined waffled woven wrinkled zigzagged"
).split()
ALL = tuple(dict.fromkeys((*WORLD, *ENGLISH, *DTD)))
