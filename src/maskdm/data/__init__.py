"""Images: where they lie, what is made of them, and which of them may be learned from.

    open_source → load_images → assign_roles → write_manifest

`sources` finds out what a path names, `readers` and `hub` list it as a `Source` and read within `limits`, `arrays`
an .npz; `pillow` opens an image, `depth` brings it to 8 bits, `decode` makes it an array; `scan` reads one image,
`image_set` decodes all of them once, `disk_cache` keeps them, and `remarks` says what deserves attention; `split` draws
who is a member, and `manifest` puts it on record. `labelled` is a set in memory, `stream` one that lies nowhere, and
`write` saves images.
"""
