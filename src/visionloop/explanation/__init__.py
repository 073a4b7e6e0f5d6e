"""Why the model answers as it does: which places of an image speak for a class, and whether such a map can be believed.

`methods` makes maps by name, `gradient` and `attention` are the ways to make them, `integrated` tells single pixels;
`faithfulness` measures maps on images whose evidence is known, `report` writes what the stage `evaluate` shows, `single`
explains one image.

What was measured on the digits (val and test, shares of strongest places inside a quarter of the image): classic Grad-CAM
is right in the CNN (98 % where the rest is blank, 88 % beside another digit) and wrong in the ViT (64 %, 55 %), because it
averages a channel's gradient over all places, and a patch's channel means another thing at each place. Maps at a ViT's last
block, where other tools look, are right in 48 to 66 %: every patch carries the whole answer there. The first norm, with one
gradient for each place, is right in 100 % and 89 %, and attention weighted by its gradients in 100 % and 90 %.

Does not cover: why a network is as it is (only one answer at a time), and text or sound.
"""
