from vtw_demo.embedded.training.command import main

# What the processes run can't stand here: they are started anew and don't import this module.
if __name__ == "__main__":
    main()
