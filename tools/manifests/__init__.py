"""`make manifests`: every overlay rendered, validated, expanded to the pod it becomes, and that pod asserted on."""
