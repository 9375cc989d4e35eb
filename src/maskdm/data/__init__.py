"""Images: where they lie, what is made of them, and which of them may be learned from.

    open_source → load_images → assign_roles → write_manifest

`sources` finds out what a path names, `readers` and `hub` list it as a `Source`, `decode` reads one image, `image_set`
decodes all of them once, and `disk_cache` keeps them; `split` draws who is a member, and `manifest` puts it on record.
`labelled` is a set in memory, `stream` one that lies nowhere, and `write` saves images.
"""
